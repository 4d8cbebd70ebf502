"""The first implementation's losses, by the module path it had."""
