from importlib import metadata

# The tests compile more than they compute.
QUICK_COMPILER = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):  # later ones end the process at the flag
    QUICK_COMPILER += " --xla_cpu_use_fusion_emitters=false"
