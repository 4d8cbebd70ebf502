"""What everything runs on: files, progress, devices and CPU arithmetic; nothing about models."""
