"""One verb a module: distil, judge, plan, publish. The command line is a thin skin over these."""
