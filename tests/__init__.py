# The tests compile more than they compute.
QUICK_COMPILER = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
