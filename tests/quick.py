"""XLA flags of tests, which compile much and compute little."""

# Unoptimised programs take less than half of the time to compile, and loops emitted one operation
# at a time, not as fusions, halve the rest.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false"
)
