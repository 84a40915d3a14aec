"""Data folders and the contract as earlier versions have written them; today's code must go on."""
