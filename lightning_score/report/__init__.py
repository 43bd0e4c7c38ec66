"""The command `report`: one page that shows how all runs do."""
