"""Which pass runs which job: claims, due jobs, recovery, and the slots that show live passes."""
