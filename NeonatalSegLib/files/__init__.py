"""Files: replaced whole, appended line by line, locked, and read strictly."""
