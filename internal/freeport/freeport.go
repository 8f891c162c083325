// Package freeport finds loopback ports for nodes in tests, which must know their peers'
// ports before they listen.
//
// A port that the kernel chooses may be anybody's again before a node listens on it: the
// kernel gives outgoing connections ports of the same range. So the ports here lie below
// that range. A process takes them from a block of its own, which it holds by listening on
// the first port of the block for as long as it lives: two processes never share one.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

const (
	firstBlock = 11_000
	blockPorts = 50
	blocks     = 400 // up to port 31000; the kernel of Linux begins at 32768
	maxOwn     = 10  // blocks of one process, which then begins again with the first
)

// own is what this process holds. Its lock is held while a port is chosen.
var own struct {
	sync.Mutex
	blocks []int          // their first ports
	guards []net.Listener // on these; never closed
	used   int            // ports that were looked at since the first block
}

// Port returns a port on 127.0.0.1 on which nobody listens. No other process that asks
// this package gets it, and this one not before it got some hundred others.
func Port() (int, error) {
	own.Lock()
	defer own.Unlock()
	for range maxOwn * blockPorts {
		if own.used%blockPorts == 0 {
			own.used++ // the guard's
		}
		block := own.used / blockPorts % maxOwn
		if block == len(own.blocks) {
			if err := reserveLocked(); err != nil {
				return 0, err
			}
		}
		port := own.blocks[block] + own.used%blockPorts
		own.used++
		if free(port) {
			return port, nil
		}
	}
	return 0, errors.New("none of the ports of this process is free")
}

// Address returns 127.0.0.1 with a port by Port.
func Address() (string, error) {
	port, err := Port()
	return loopback(port), err
}

func reserveLocked() error {
	for range 1000 {
		first := firstBlock + rand.IntN(blocks)*blockPorts
		l, err := net.Listen("tcp", loopback(first))
		if err != nil {
			continue
		}
		own.guards, own.blocks = append(own.guards, l), append(own.blocks, first)
		return nil
	}
	return fmt.Errorf("no free block of ports between %d and %d", firstBlock, firstBlock+blocks*blockPorts)
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func free(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	return err == nil && l.Close() == nil
}
