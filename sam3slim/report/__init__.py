"""Tables, plots and pictures of what runs recorded: a table needs neither torch nor matplotlib."""
