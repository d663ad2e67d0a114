"""Where a pipeline runs: on the cores of this machine, on Spark, or on any runner of Beam."""
