//go:build !linux

package main

// volatileFileSystem can tell on Linux only.
func volatileFileSystem(string) string { return "" }
