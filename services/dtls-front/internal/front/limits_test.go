package front

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// DO-SEC-011.
func TestDatagramsOfOneSessionAreLimitedAndThoseOfOthersAreNot(t *testing.T) {
	rig := newRig(t, func(limits *Limits) { limits.DatagramsPerSecond, limits.DatagramBurst = 0, 3 })
	loud, calm := rig.device("node-1", "0123456789abcdef"), rig.device("node-2", "fedcba9876543210")
	for range 3 {
		loud.send("a")
		loud.receive()
	}
	loud.send("b")
	loud.send("c")
	eventually(t, "two datagrams are dropped", func() bool { return rig.front.Counters.DatagramsLimited.Load() == 2 })
	calm.send("d")
	calm.receive()
}

// DO-SEC-011.
func TestSourcesAreForgottenOnceTheyAreIdleAndNewOnesRefusedUntilThen(t *testing.T) {
	limits := DefaultLimits()
	limits.Sources, limits.HandshakesPerSecond, limits.HandshakeBurst = 100, 1, 2
	known, now := newSources(limits), time.Unix(1_000_000, 0)
	address := func(number int) net.Addr {
		return &net.UDPAddr{IP: net.IPv4(192, 0, byte(number>>8), byte(number)), Port: 1}
	}
	for number := range 1000 {
		if allowed := known.allow(address(number), now); allowed != (number < limits.Sources) {
			t.Fatalf("source %d: %t", number, allowed)
		}
	}
	if !known.allow(address(5), now) || known.allow(address(5), now) {
		t.Error("a source has two handshakes at once and no more")
	}
	later := now.Add(10 * time.Second)
	if !known.allow(address(2000), later) {
		t.Error("the idle ones should have been forgotten")
	}
	if len(known.known) > limits.Sources {
		t.Error(fmt.Sprint(len(known.known), " sources are kept"))
	}
}
