"""What kernels and layers share: functions with custom gradients, quantized weights, the platform, and sequences that
are sharded over devices.
"""
