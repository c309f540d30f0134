"""The dual-arm tabletop: scene, tasks and scripted experts."""
