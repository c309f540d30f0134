"""Any LeRobot policy behind openpi's websocket protocol, with its own pre- and post-processors."""
