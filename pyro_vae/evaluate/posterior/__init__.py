"""How good the guide is: posteriors of single images, calibration, and what the rate is made of."""
