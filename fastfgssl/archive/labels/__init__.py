"""Labels, groups and splits: from the tables that users have to columns of samples."""
