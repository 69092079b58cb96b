"""What kernels and layers share: functions with gradients of their own, the platform, and sequences that are split over
devices.
"""
