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

// socketMode lets the socket's owner and group in, and nobody else.
const socketMode = 0o660

// staleTimeout is how long whoever holds a socket may take to answer before
// the file counts as taken.
const staleTimeout = time.Second

// ListenForClients binds the addresses for clients, and writes the ports that
// it got into the settings where any would do (port 0).
func ListenForClients(s *settings.Settings) ([]net.Listener, error) {
	return listenAll(s.ListenClient, originOf(s, "port", "listen-client"), func(wanted, got string) {
		if i := slices.Index(s.AdvertiseClient, wanted); i >= 0 && !s.Has("advertise-client") {
			s.AdvertiseClient[i] = got
		}
	})
}

// listenAll binds all of the addresses, or none. It replaces those with port 0
// by the ones that it got, and tells changed of it.
func listenAll(urls []string, origin string, changed func(wanted, got string)) (all []net.Listener, err error) {
	for i, wanted := range urls {
		l, err := listen(wanted)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("cannot serve on %s, which is %s: %w", wanted, origin, err), CloseAll(all))
		}
		all = append(all, l)
		if u, err := url.Parse(wanted); err == nil && u.Port() == "0" {
			urls[i] = u.Scheme + "://" + l.Addr().String()
			changed(wanted, urls[i])
		}
	}
	return all, nil
}

func CloseAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// originOf says who chose an address: the first of the settings that was given.
func originOf(s *settings.Settings, names ...string) string {
	for _, name := range names {
		if g, ok := s.Given[name]; ok {
			return "set by " + g.Origin
		}
	}
	return "the default (--listen-client or --port choose another)"
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

// listenUnix binds a socket, in the place of one that a killed process left.
// The listener removes its file when it is closed.
func listenUnix(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && isStale(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the socket that a dead process left: %w", err)
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
// doubt means no: a file of another kind, a listener that is slow to accept.
func isStale(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != fs.ModeSocket {
		return false
	}
	conn, err := net.DialTimeout("unix", path, staleTimeout)
	if err == nil {
		_ = conn.Close() // somebody answered, which was the question
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
