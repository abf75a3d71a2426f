"""What every command does, once its arguments are read; slow imports happen inside the functions, not above them."""
