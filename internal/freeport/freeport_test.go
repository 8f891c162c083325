package freeport

import (
	"net"
	"testing"
)

// TestPort: ports differ, can be listened on, and leave out those that are taken.
func TestPort(t *testing.T) {
	seen := make(map[int]bool)
	for range 3 * blockPorts {
		port, err := Port()
		if err != nil || seen[port] || port <= firstBlock || port >= firstBlock+blocks*blockPorts {
			t.Fatalf("port %d, %v", port, err)
		}
		seen[port] = true
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
}

// TestPortsAreUsedAgain: a process may ask for any number of ports, one after the other.
func TestPortsAreUsedAgain(t *testing.T) {
	for range 3 * maxOwn * blockPorts {
		if _, err := Port(); err != nil {
			t.Fatal(err)
		}
	}
	if len(own.blocks) > maxOwn {
		t.Errorf("%d blocks", len(own.blocks))
	}
}
