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

	"go.uber.org/zap/zapcore"

	"github.com/kvd-io/kvd/internal/limits"
)

// codec turns the texts of one kind of setting into values and back.
type codec[T any] struct {
	parse func(string) (T, error)
	show  func(T) string // "" for the zero value where that means "none"
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
	paceCodec       = codec[time.Duration]{parsePace, showDuration}
	levelCodec      = codec[level]{parseLevel, level.String}
	tlsVersionCodec = codec[uint16]{parseTLSVersion, showTLSVersion}
	clientAuthCodec = codec[string]{parseClientAuth, same}
)

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
		return 0, fmt.Errorf("%q is no number between 1 and 2^53-1", text)
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
		return 0, fmt.Errorf("%q is no port between 1 and 65535", text)
	}
	return n, nil
}

func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no number between 0 and 2^31-1", text)
	}
	return n, nil
}

func oneOf(choices ...string) codec[string] {
	return codec[string]{show: same, parse: func(text string) (string, error) {
		if !slices.Contains(choices, text) {
			return "", fmt.Errorf("%q is none of %s", text, strings.Join(choices, ", "))
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

// parseClientAuth takes "optional" too, which says the same as "request".
func parseClientAuth(text string) (string, error) {
	if text == "optional" {
		return "request", nil
	}
	return oneOf("off", "request", "require").parse(text)
}

// parseTLSVersion takes etcd's spelling too.
func parseTLSVersion(text string) (uint16, error) {
	switch strings.TrimPrefix(text, "TLS") {
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("%q is none of 1.2, 1.3", text)
}

func showTLSVersion(v uint16) string {
	return strings.TrimPrefix(tls.VersionName(v), "TLS ")
}

func parseLevel(text string) (level, error) {
	l, err := zapcore.ParseLevel(text)
	if err != nil || l > zapcore.ErrorLevel {
		return 0, fmt.Errorf("%q is none of debug, info, warn, error", text)
	}
	return l, nil
}

// parsePace takes a duration. A bare number is milliseconds, as in etcd, which
// has these two settings under the same names.
func parsePace(text string) (time.Duration, error) {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		text = strconv.FormatUint(n, 10) + "ms"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is no duration such as 500ms or 2s", text)
	}
	return d, nil
}

func showDuration(d time.Duration) string { return d.String() }

// units of sizes, longest names first.
var units = []struct {
	name  string
	bytes float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

func parseSize(text string) (int64, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
		return n, nil
	}
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err == nil && n >= 0 && n*u.bytes < math.MaxInt64 {
			return int64(n * u.bytes), nil
		}
		break
	}
	return 0, fmt.Errorf("%q is no size such as 1048576, 512KiB or 8GiB", text)
}

// showSize writes a size in the greatest unit that divides it.
func showSize(n int64) string {
	names := []string{"", "KiB", "MiB", "GiB", "TiB"}
	unit := 0
	for n != 0 && n%1024 == 0 && unit < len(names)-1 {
		n /= 1024
		unit++
	}
	return strconv.FormatInt(n, 10) + names[unit]
}

// ParseLogLevel reads a level as --log-level takes it.
func ParseLogLevel(text string) (zapcore.Level, error) { return parseLevel(text) }
