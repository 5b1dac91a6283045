"""Where does it run: configuration, data types, Ray sessions, placement, run directories."""
