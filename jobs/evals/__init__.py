"""`penstock eval`: several candidates over the same labelled rows, in one run, through the same line as any job."""
