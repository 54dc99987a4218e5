// Read the cursor in C++: apt-get install libzmq3-dev cppzmq-dev nlohmann-json3-dev
//
//     g++ -std=c++17 -O2 reader.cpp -o reader -lzmq && ./reader [tcp://127.0.0.1:5556]
//
// Prints `seq vel_x vel_y` (m/s) for each frame to act on, and `stop: why` otherwise. Call your own
// function in their place. The rules are in docs/READERS.md.

#include <chrono>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <zmq.hpp>

constexpr double max_age_s = 0.1;
constexpr double drift = 2e-4;  // s/s; by how much two hosts' clocks may drift apart
constexpr int schema = 1;
const std::string topic = "cursor.json:";

double seconds() {
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

int main(int argc, char** argv) {
    setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    zmq::context_t context;
    zmq::socket_t socket(context, zmq::socket_type::sub);
    socket.set(zmq::sockopt::conflate, 1);  // keeps only the newest frame
    socket.set(zmq::sockopt::rcvbuf, 4096);
    socket.set(zmq::sockopt::rcvtimeo, static_cast<int>(max_age_s * 1e3));
    socket.set(zmq::sockopt::subscribe, topic);
    socket.connect(argc > 1 ? argv[1] : "tcp://127.0.0.1:5556");
    const double unknown = std::numeric_limits<double>::infinity();
    double shortest = unknown, started = -1.0, before = seconds();
    zmq::message_t message;
    for (;;) {
        if (!socket.recv(message)) {
            std::puts("stop: silence");
            continue;
        }
        try {
            const auto frame = nlohmann::json::parse(message.to_string_view().substr(topic.size()));
            const double now = seconds(), way = now - frame.at("published").get<double>();
            if (frame.at("started").get<double>() != started) {  // another daemon
                started = frame.at("started").get<double>();
                shortest = unknown;
            }
            shortest = std::min(way, shortest + drift * (now - before));
            before = now;
            const double vel_x = frame.at("velocity").at(0).get<double>();
            const double vel_y = frame.at("velocity").at(1).get<double>();
            if (frame.at("schema").get<int>() != schema) {
                std::puts("stop: another schema");
            } else if (way - shortest > max_age_s) {
                std::puts("stop: an old frame");
            } else if (!frame.at("valid").get<bool>()) {
                std::printf("stop: %s\n", frame.at("state").get<std::string>().c_str());
            } else {
                std::printf("%ld %.17g %.17g\n", frame.at("seq").get<long>(), vel_x, vel_y);
            }
        } catch (const nlohmann::json::exception& error) {
            std::printf("stop: unreadable (%s)\n", error.what());
        }
    }
}
