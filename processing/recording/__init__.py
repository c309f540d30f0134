"""Writing LeRobot datasets, safe against crashes."""
