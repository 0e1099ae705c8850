"""What a run says of itself: metrics, progress, times and the look of its targets."""
