"""`springtide simulate`: a sale rehearsed at any size, on a virtual clock, by the production decisions."""
