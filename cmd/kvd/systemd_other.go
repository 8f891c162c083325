//go:build !linux

package main

// monotonicMicros: there is no systemd here.
func monotonicMicros() int64 { return 0 }
