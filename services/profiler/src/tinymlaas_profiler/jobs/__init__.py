"""Jobs that run in a child process; each module has `run(request, blobs) -> (report, blobs)`."""
