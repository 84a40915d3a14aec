"""What a platform team installs beside the programs; the Python in here makes files of it."""
