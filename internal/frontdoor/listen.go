package frontdoor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/kvd-io/kvd/internal/settings"
)

// socketMode lets the owner and the group of a Unix socket in, and nobody
// else.
const socketMode = 0o660

// staleTimeout is how long the process behind a Unix socket may take to accept
// before the socket counts as in use.
const staleTimeout = time.Second

// advertised returns what to do with a port that the kernel chose: tell others
// of it, unless --advertise-client says what to tell them.
func advertised(s *settings.Settings) func(wanted, got string) {
	return func(wanted, got string) {
		if !s.Has("advertise-client") {
			replaceURL(s.AdvertiseClient, wanted, got)
		}
	}
}

func replaceURL(urls []string, wanted, got string) {
	if i := slices.Index(urls, wanted); i >= 0 {
		urls[i] = got
	}
}

// listenAll binds all of the addresses, or none (I1). It replaces URLs with
// port 0 by those with the port that it got, and calls chosen for each.
func listenAll(urls []string, origin string, chosen func(wanted, got string)) (all []net.Listener, err error) {
	for i, wanted := range urls {
		l, err := listen(wanted)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s (%s): %w", wanted, origin, reason(err)), closeAll(all))
		}
		all = append(all, l)
		if u, err := url.Parse(wanted); err == nil && u.Port() == "0" {
			urls[i] = u.Scheme + "://" + l.Addr().String()
			chosen(wanted, urls[i])
		}
	}
	return all, nil
}

// reason drops the address from an error of package net, which the caller
// names in the form that the user gave.
func reason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// originOf returns who chose an address: the first of the settings that was
// given.
func originOf(s *settings.Settings, names ...string) string {
	for _, name := range names {
		if g, ok := s.Given[name]; ok {
			return "set by " + g.Origin
		}
	}
	return "the default; choose another with --port or --listen-client"
}

func listen(address string) (net.Listener, error) {
	if path, ok := settings.IsUnix(address); ok {
		return listenUnix(path)
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	return net.Listen("tcp", u.Host)
}

// listenUnix binds a Unix socket and replaces one that a killed process left.
// The listener removes its file when it is closed.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && isStale(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the socket of a dead process: %w", err)
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// isStale reports whether the file is a socket that nobody listens on. Any
// doubt means no: the file is something else, or its listener is slow to
// accept. Removing either would destroy data or cut off a live server.
func isStale(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	conn, err := net.DialTimeout("unix", path, staleTimeout)
	if err == nil {
		_ = conn.Close() // somebody accepted, which was the question
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
