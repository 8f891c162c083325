//go:build !linux

package main

// volatileFileSystem knows the kinds of Linux only.
func volatileFileSystem(string) string { return "" }
