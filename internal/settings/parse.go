package settings

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/limits"
)

// codec converts between the texts and the values of one kind of setting. parse
// must accept every text that show returns, and yield the same value (L4).
type codec[T any] struct {
	parse func(string) (T, error)
	show  func(T) string // "" for a zero value that means "none"
}

type level = zapcore.Level

func same(text string) string { return text }

var (
	textCodec       = codec[string]{parseText, same}
	idCodec         = codec[uint64]{parseID, showID}
	portCodec       = codec[uint64]{parsePort, showID}
	countCodec      = codec[int64]{parseCount, func(n int64) string { return strconv.FormatInt(n, 10) }}
	switchCodec     = codec[bool]{parseSwitch, showSwitch}
	sizeCodec       = codec[int64]{parseSize, showSize}
	memoryCodec     = codec[int64]{parseSize, showGivenSize}
	paceCodec       = codec[time.Duration]{parsePace, showDuration}
	durationCodec   = codec[time.Duration]{parseDuration, showDuration}
	levelCodec      = codec[level]{parseLevel, level.String}
	tlsVersionCodec = codec[uint16]{parseTLSVersion, showTLSVersion}
	authTokenCodec  = codec[string]{parseAuthToken, same}
	clientAuthCodec = codec[string]{parseClientAuth, same}
)

// parseText refuses what no name, path or token contains. An empty value is far
// more often an unset shell variable than a wish for the default.
func parseText(text string) (string, error) {
	if text == "" {
		return "", errors.New("the value is empty")
	}
	if strings.ContainsAny(text, "\x00\r\n") {
		return "", errors.New("the value has more than one line")
	}
	return text, nil
}

func parseID(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || !limits.ValidMemberID(n) {
		return 0, fmt.Errorf("%q is not a number from 1 to 2^53-1", text)
	}
	return n, nil
}

func showID(id uint64) string {
	if id == 0 {
		return ""
	}
	return strconv.FormatUint(id, 10)
}

func parsePort(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port number from 1 to 65535", text)
	}
	return n, nil
}

func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number from 0 to 2^31-1", text)
	}
	return n, nil
}

func oneOf(choices ...string) codec[string] {
	return codec[string]{show: same, parse: func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", fmt.Errorf("%q is not one of %s", text, strings.Join(choices, ", "))
		}
		return text, nil
	}}
}

func parseSwitch(text string) (bool, error) {
	switch text {
	case "on", "true":
		return true, nil
	case "off", "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither on nor off", text)
}

func showSwitch(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// parseClientAuth accepts "optional" as another word for "request".
func parseClientAuth(text string) (string, error) {
	if text == "optional" {
		return "request", nil
	}
	return oneOf("off", "request", "require").parse(text)
}

// parseTLSVersion accepts etcd's spelling (TLS1.2) too. TLS 1.0 and 1.1 are broken
// and not offered at all.
func parseTLSVersion(text string) (uint16, error) {
	switch strings.TrimPrefix(text, "TLS") {
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("%q is not one of 1.2, 1.3", text)
}

func showTLSVersion(v uint16) string {
	return strings.TrimPrefix(tls.VersionName(v), "TLS ")
}

func parseLevel(text string) (level, error) {
	l, err := zapcore.ParseLevel(text)
	if err != nil || l > zapcore.ErrorLevel {
		return 0, fmt.Errorf("%q is not one of debug, info, warn, error", text)
	}
	return l, nil
}

// parsePace parses a duration. A bare number is in milliseconds: etcd's two
// settings of the same names are numbers of milliseconds, and a unit file that was
// written for etcd must not suddenly mean seconds.
func parsePace(text string) (time.Duration, error) {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		text = strconv.FormatUint(n, 10) + "ms"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a positive duration (for example, 500ms)", text)
	}
	return d, nil
}

// parseDuration parses a duration, which may be 0. A bare number is in seconds, as in the
// HTTP interface.
func parseDuration(text string) (time.Duration, error) {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		text = strconv.FormatUint(n, 10) + "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration (for example, 10m)", text)
	}
	return d, nil
}

func showDuration(d time.Duration) string { return d.String() }

// parseSize parses a number of bytes, or a number with a decimal or binary unit
// (64MB, 64MiB, and Kubernetes' 64Mi). Commas are refused although go-humanize
// reads them as thousands separators: everywhere else in the settings they
// separate the elements of a list.
func parseSize(text string) (int64, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil || n > math.MaxInt64 || strings.Contains(text, ",") {
		return 0, fmt.Errorf("%q is not a size (for example, 1048576, 512KiB, or 8GiB)", text)
	}
	return int64(n), nil
}

// showSize returns a size in the largest unit that divides it.
func showSize(n int64) string {
	names := []string{"", "KiB", "MiB", "GiB", "TiB"}
	unit := 0
	for n != 0 && n%1024 == 0 && unit < len(names)-1 {
		n /= 1024
		unit++
	}
	return strconv.FormatInt(n, 10) + names[unit]
}

// showGivenSize shows nothing for 0, which means that no size was given.
func showGivenSize(n int64) string {
	if n == 0 {
		return ""
	}
	return showSize(n)
}

// ParseLogLevel parses a level as --log-level does.
func ParseLogLevel(text string) (zapcore.Level, error) { return parseLevel(text) }
