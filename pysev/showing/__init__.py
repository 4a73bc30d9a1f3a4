"""Flows and orders of events as people read and send them: columns, diagrams, scripts, pseudocode.

``story`` plays steps on the machine and keeps what each changed and read; ``timeline``,
``sequence`` and ``picture`` show a story; ``script`` writes it down and ``replay`` plays it again;
``chart``, ``pseudocode`` and ``chartpicture`` show the flow itself.
"""
