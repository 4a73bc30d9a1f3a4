"""The protocol as data: rows that name the numbers of ``include/`` and say what they mean."""
