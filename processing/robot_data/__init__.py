"""LeRobot datasets: format, metadata and the reader."""
