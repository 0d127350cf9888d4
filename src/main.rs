fn main() -> std::process::ExitCode {
    pcluster::run()
}
