//go:build !linux

package engine

func forgetPages(uintptr) {}
