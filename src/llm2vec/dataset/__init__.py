"""The first implementation's data sets, by the module path it had."""
