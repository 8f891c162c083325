//go:build !linux

package main

// forgetfulFileSystem can tell on Linux only.
func forgetfulFileSystem(string) string { return "" }
