"""Converting other formats of robot demonstrations to LeRobot v3.0 (`syvla-convert`)."""
