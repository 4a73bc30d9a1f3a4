"""pysev: a software model of AMD SEV-ES / SEV-SNP machines."""
