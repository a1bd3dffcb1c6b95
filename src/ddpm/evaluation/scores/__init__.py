"""The scores themselves: features or pixels in, numbers out; each definition a file."""
