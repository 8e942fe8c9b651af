"""Predictions against votes: metrics, calibration, report. Arrays only: neither torch nor ray."""
