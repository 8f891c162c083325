// Package memberurl judges the URLs of members: the one place that says what
// such a URL may look like. Settings, requests, the membership and the transport
// all ask it, so what one layer accepts the next one accepts too. When each
// layer had its own idea, a trailing slash passed the HTTP contract and failed
// in the replication layer, which could only call it an internal error.
//
// It imports nothing of this module, so every package may import it.
package memberurl

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Limits of the URLs of one member.
const (
	maxURLs     = 16
	maxURLBytes = 512
)

// Validate returns everything that is wrong with the URLs of a member. A member
// has at least one, each of the form http://host:port or https://host:port and
// nothing more.
//
// Members connect to every URL that is in the membership, so it must not lead
// them where an attacker wants. Link-local addresses are refused: the metadata
// services of cloud providers have such addresses, and they mean nothing beyond
// one network segment.
func Validate(urls []string) error {
	if len(urls) == 0 {
		return errors.New("at least one URL is required")
	}
	if len(urls) > maxURLs {
		return fmt.Errorf("%d URLs exceed the limit of %d", len(urls), maxURLs)
	}
	var errs []error
	for _, u := range urls {
		if err := validate(u); err != nil {
			errs = append(errs, fmt.Errorf("URL %.100q: %w", withoutUser(u), err))
		}
	}
	return errors.Join(errs...)
}

// Normalize validates URLs that a person wrote and returns them in the form in
// which they are kept and compared: without a slash at the end, and in lower case,
// since the case of a scheme and of a host means nothing.
func Normalize(urls []string) ([]string, error) {
	out := make([]string, len(urls))
	for i, u := range urls {
		if out[i] = u; !strings.HasSuffix(u, "//") { // "http://" lacks a host, not a path
			out[i] = strings.TrimSuffix(u, "/")
		}
	}
	if err := Validate(out); err != nil {
		return nil, err
	}
	for i, u := range out {
		out[i] = strings.ToLower(u)
	}
	return out, nil
}

// OnThisMachine reports whether only this machine can reach the URL. A name may
// stand for any address, except localhost, which is reserved for this.
func OnThisMachine(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return strings.EqualFold(u.Hostname(), "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// withoutUser removes user and password, so that they do not end up in a log.
func withoutUser(raw string) string {
	if at := strings.LastIndexByte(raw, '@'); at >= 0 {
		return "..." + raw[at:]
	}
	return raw
}

func validate(raw string) error {
	if len(raw) > maxURLBytes {
		return fmt.Errorf("exceeds %d bytes", maxURLBytes)
	}
	if strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("contains a space or a character that is not printable ASCII")
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return errors.New("not a URL") // the parser's own error repeats the URL, with its password
	case u.Scheme != "http" && u.Scheme != "https":
		return errors.New("scheme must be http or https")
	case u.User != nil:
		return errors.New("must not contain a user or password")
	case u.Opaque != "" || u.Path != "" || strings.ContainsAny(raw, "?#"):
		return errors.New("must have the form http://host:port or https://host:port")
	}
	if err := validatePort(u.Port()); err != nil {
		return err
	}
	return validateHost(u.Hostname())
}

func validatePort(port string) error {
	if port == "" {
		return errors.New("port is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return errors.New("port must be between 1 and 65535")
	}
	return nil
}

func validateHost(host string) error {
	if host == "" {
		return errors.New("host is missing")
	}
	ip, err := netip.ParseAddr(host)
	if err == nil {
		if ip.Unmap().IsLinkLocalUnicast() {
			return errors.New("link-local addresses are not allowed")
		}
		return nil
	}
	if strings.Contains(host, ":") {
		return errors.New("host is not an IPv6 address")
	}
	// url.Parse decodes %EF%BC%92, a wide 2, and net/http turns it into a plain one when it
	// dials: such a host was a link-local address in disguise. A comma would end the URL
	// where URLs are listed.
	if strings.ContainsFunc(host, notInNames) {
		return errors.New("host has a character that names of hosts do not have; write an international name in its ASCII form (xn--...)")
	}
	// Some resolvers take 2852039166, 0xa9fe.1, and 169.254.1 for addresses, here
	// link-local ones.
	if last := host[strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')+1:]; looksNumeric(last) {
		return errors.New("host ends in a number but is not an IPv4 address")
	}
	return nil
}

// notInNames reports whether a character is none that a name of a host has.
func notInNames(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		return false
	}
	return true
}

// looksNumeric reports whether a resolver may take the last label of a host for a
// number.
func looksNumeric(label string) bool {
	label = strings.TrimSuffix(label, ".")
	_, err := strconv.ParseUint(label, 0, 64)
	return err == nil || label != "" && strings.Trim(label, "0123456789") == ""
}
