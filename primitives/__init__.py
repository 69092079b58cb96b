"""What kernels and layers share: functions with gradients of their own, arrays of weights in fewer bits, the platform,
and sequences that are split over devices.
"""
