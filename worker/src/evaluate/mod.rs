//! Figures: accuracy, calibration, KL, gold reward.
