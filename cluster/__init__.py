"""Where does it run? Configuration, data types, records, run directories, trackers, and Ray."""
