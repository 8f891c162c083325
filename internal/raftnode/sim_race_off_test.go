//go:build !race

package raftnode

const underRace = false
