"""From an archive to batches of views: order, reader, view parameters, DALI graph."""
