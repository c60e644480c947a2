"""Looking at and measuring what was trained: pictures and reports."""
